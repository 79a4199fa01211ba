"""One file for each stage; rows in, rows out, without Ray."""
