"""Pure data and rules: what is declared, who is who, where shards belong. No I/O and no clock in here."""
