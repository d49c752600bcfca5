"""Studies: a declared set of runs of the training job, their schedule, and what their numbers say."""
