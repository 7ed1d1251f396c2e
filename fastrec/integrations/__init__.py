"""Where fastrec meets other libraries: one module for each, imported by its own name and by nobody else."""
