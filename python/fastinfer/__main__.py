"""`python -m fastinfer`: what fastinfer found on this machine and what it uses."""

from fastinfer.info import show_config

show_config().show()
