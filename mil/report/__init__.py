"""What is shown of a sweep: figures and tables of all runs, in one page, in LaTeX and as files."""
