"""Rows that exist: files, data sets by their id, mixes of several; and the form in which ours are handed on."""
