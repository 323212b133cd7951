"""Measurements.  Nothing here decides a test."""
