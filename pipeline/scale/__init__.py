"""One archive, many machines: shards for job arrays, Ray Data for clusters."""
