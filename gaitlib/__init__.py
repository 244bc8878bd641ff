"""Compress GaitBase in one training run: model, data, HESSO / GETA and analysis."""
