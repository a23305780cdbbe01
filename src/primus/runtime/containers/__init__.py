"""Container engines of this machine, and what a run needs to work in one."""
