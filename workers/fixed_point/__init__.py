"""Networks in integers only: what they are made of, how they run, and the files that they are written to."""
