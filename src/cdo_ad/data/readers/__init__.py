"""Readers of data sets: a module for each layout, and one door to all of them, `cdo_ad.data.readers.layout`."""
