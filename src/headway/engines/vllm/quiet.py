"""Import before vLLM where no engine runs: its warnings about the machine would reach the terminal.

vLLM sets its loggers up in an engine only; until then Python's last resort prints them.
"""

import logging

logging.getLogger("vllm").setLevel(logging.ERROR)
