"""The load generator: what is asked of a cluster (plan, workload, content), how (loops, operations), what came of it
(latency, recorder, result), how that is shown (report, compare), and what happens when nodes fail (failure)."""
