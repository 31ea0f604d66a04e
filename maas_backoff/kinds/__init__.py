"""Kinds of tasks: functions of users with parameters and results of their own types."""
