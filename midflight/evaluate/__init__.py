"""What policies and claims are worth: staggered sends in virtual time, with the code that runs in production inside."""
