"""The paper's data sets: from the files of a download to the folders that `gwm evaluate` and `gwm prepare` read."""
