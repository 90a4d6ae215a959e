#!/bin/sh
# vllm-router in front of two Headway servers. Change the two addresses; leave the rest.
#
#   sh /path/to/vllm-router.sh        (tried with 0.1.17)
#
# Start the servers with: --overload refuse --retries-elsewhere 4
# Not with --request-start: vllm-router sets no X-Request-Start, and passes on what a client wrote.
# What is behind each line: docs/how-to/behind-a-router.md

# round_robin: with the other policies a retry may ask the server that has just refused.
# Five tries: between two tries of one request others take turns, so that two are too few.
# Backoff of 10 ms, not growing: another server may be free now.
exec vllm-router \
    --host 0.0.0.0 \
    --port 8000 \
    --worker-urls http://127.0.0.1:8001 http://127.0.0.1:8002 \
    --policy round_robin \
    --retry-max-retries 5 \
    --retry-initial-backoff-ms 10 \
    --retry-backoff-multiplier 1 \
    --request-timeout-secs 3600 \
    --prometheus-port 29000
