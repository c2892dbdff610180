"""Records become events in columns, events fold into shards, shards emit cell changes. Pure: time is an argument."""

from ..kit.compiled import keep_compiled

keep_compiled(__path__[0])
