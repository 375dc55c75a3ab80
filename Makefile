# demo and test are all the set-up there is: each makes .venv and installs into it first.
