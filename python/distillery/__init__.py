"""Distillery: distributed knowledge distillation. The programs are in distillery/bin; pip puts launchers for them on
the PATH."""
