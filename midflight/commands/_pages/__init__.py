"""The pages of docs/ that are written from the code, one file each: `page()` returns the page's text."""

MARK = "<!-- Written by `midflight docs` from the code. Change it there. -->"
