"""What the commands on files of query lists do: inspect, import, export."""

COMMANDS = ("inspect", "import", "export", "cut")
