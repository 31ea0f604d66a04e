"""The endless coroutines of a worker, and the parts that only these coroutines use."""
