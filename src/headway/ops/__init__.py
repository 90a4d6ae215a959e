"""What operators load into Prometheus, Grafana and the proxies in front: files, no code."""
