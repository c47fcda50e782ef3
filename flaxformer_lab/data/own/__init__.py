"""A user's own files as data sets: `task.dataset=KIND:PATH?OPTION=VALUE&...`, one file for each kind."""
