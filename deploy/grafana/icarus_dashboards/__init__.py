"""The Grafana dashboards as code; `python -m icarus_dashboards FOLDER` writes them as JSON. Needs nothing of Icarus."""
