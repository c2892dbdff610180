"""Records become events in columns, events fold into shards, shards emit cell changes. Pure: time is an argument."""

from ..kit.compiled import keep_compiled

# The functions of `decide` are kept beside these: a package that imports another is compiled with it.
keep_compiled(__path__[0], __path__[0].removesuffix("stream") + "decide")
