"""Floor 4, sparse dictionaries: more units than dimensions, few of them on."""
