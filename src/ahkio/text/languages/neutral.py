"""Rules for what is no language, such as code and mathematics: all stays, and contacts are masked.

datatrove masks what looks like a public IP address, and so version numbers in four parts: turn `public_ips` off where
they matter more.
"""

from ahkio.text.rules import Rules

RULES = Rules()
