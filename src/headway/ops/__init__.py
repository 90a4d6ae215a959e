"""What operators load into Prometheus and Grafana: files, no code."""
