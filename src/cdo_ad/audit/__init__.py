"""What is wrong with a data set, before any training: the verb `check`, see `cdo_ad.audit.check`."""
