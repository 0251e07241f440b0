"""A mitmproxy script that reports to the test when every addon before it is running."""

import logging

SIGN = "every addon is running"


def running() -> None:
    logging.info(SIGN)
