"""Recipes in files, and model folders merged by them."""
