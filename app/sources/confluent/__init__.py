"""The interface of client.py over confluent-kafka (librdkafka): the fast client."""
