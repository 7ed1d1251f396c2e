"""Beyond one process and one machine, on existing engines: Ray, Spark and torch.distributed. Nothing here is imported by the core."""
