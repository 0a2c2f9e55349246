"""The lab proves itself: `make lab-test`."""
