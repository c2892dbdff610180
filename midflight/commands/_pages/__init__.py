"""The pages of docs/ that are written from the code, one file each: `page()` returns the page's text."""
