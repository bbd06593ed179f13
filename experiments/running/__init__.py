"""Running kernels for experiments on either chip: jobs, backends, the functions of the worker process."""
