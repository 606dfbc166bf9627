"""The method of Cao et al. (IEEE TII 2023): pure tensor maths, no files and no data sets."""
