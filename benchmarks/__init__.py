"""Benchmarks: figures for people, measured side by side; nothing here is a test."""
