"""From a Job to processes: rendering is pure, submitting is thin; one file a place."""
