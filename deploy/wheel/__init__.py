"""Coffre: an object store for health records that no node and no hosting company alone can read.

Applications import `coffre.client`; their tests, `coffre.testing`. The command is `coffre`.
"""
