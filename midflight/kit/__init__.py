"""Small parts with no knowledge of email: plugins, clock, errors, counters. Imports nothing of ours."""
