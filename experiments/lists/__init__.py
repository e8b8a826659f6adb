"""What the commands on files of query lists do: inspect, import, export, cut, temperatures."""

COMMANDS = ("inspect", "import", "export", "cut", "temperatures")
