"""report.html: what a command did and what came out, in one file that needs nothing else."""
