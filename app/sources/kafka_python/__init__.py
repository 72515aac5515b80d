"""The interface of client.py over kafka-python: pure Python, six times confluent-kafka's CPU a record."""
