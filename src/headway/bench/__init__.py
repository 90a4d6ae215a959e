"""The load generator: real HTTP clients, the demo's contest, and the page that shows it."""
