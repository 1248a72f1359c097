"""The steps of a recipe as algorithms: graphs and tensors in, graphs and records out. Nothing here knows of jobs."""
