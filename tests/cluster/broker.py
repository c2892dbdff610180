"""A real Kafka on loopback: one process that is broker and controller, over a folder of its own."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic
from kafka_jars import class_path
from loopback import Server, free_port

heap_mb_max = 384
answer_s_max = 2.0
topic_s_max = 30.0

# What it says goes to the standard output, and so into its folder.
LOG4J = """\
status=ERROR
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d %p %c: %m%n
rootLogger.level=INFO
rootLogger.appenderRef.out.ref=out
"""

# One copy of everything, since there is one broker; few partitions of its own topics and short patience, so that it starts and
# recovers in the time that a test has.
SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "default.replication.factor": "1",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
}


class Broker(Server):
    """A broker and its topics. `settings` stand over those of this file."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(folder)
        self.port, self.controller_port = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.settings = SETTINGS | dict(settings or {})
        self.properties = folder / "server.properties"
        self.data = folder / "data"

    def java(self, *arguments: str) -> list[str]:
        """Return a command that runs one of Kafka's programs, whose every file is in the folder."""
        java = shutil.which("java")
        assert java, "Kafka needs Java 17 or newer on the PATH (Debian: apt-get install openjdk-17-jre-headless)"
        memory = ["-Xms128m", f"-Xmx{heap_mb_max}m", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError"]
        files = ["-XX:-UsePerfData", f"-XX:ErrorFile={self.folder}/crash", f"-Djava.io.tmpdir={self.folder}/tmp"]
        logging = [f"-Dlog4j2.configurationFile={self.folder}/log4j2.properties", "-Dlog4j2.disableJmx=true"]
        return [java, *memory, *files, *logging, "-cp", class_path(), *arguments]

    def prepare(self) -> None:
        """Write its settings and, once, the marks that make an empty folder a broker's."""
        (self.folder / "tmp").mkdir(exist_ok=True)
        (self.folder / "log4j2.properties").write_text(LOG4J)
        place = {
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://127.0.0.1:{self.controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self.address}",
            "controller.quorum.voters": f"1@127.0.0.1:{self.controller_port}",
            "log.dirs": str(self.data),
        }
        self.properties.write_text("".join(f"{name}={value}\n" for name, value in (self.settings | place).items()))
        if not (self.data / "meta.properties").exists():
            cluster = uuid.uuid4().hex[:22]
            self.run_once(self.java("kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(self.properties)))

    def command(self) -> list[str]:
        return self.java("kafka.Kafka", str(self.properties))

    def admin(self) -> AdminClient:
        """Return a client that makes topics and asks about them."""
        # It is asked while nobody listens, which is no news.
        return AdminClient({"bootstrap.servers": self.address, "log_level": 0})

    def ready(self) -> bool:
        try:
            return bool(self.admin().list_topics(timeout=answer_s_max).brokers)
        except KafkaException:
            return False

    def make_topic(self, name: str, partitions: int = 1, settings: Mapping[str, str] | None = None) -> str:
        """Make a topic and return its name. Raises KafkaException."""
        # The client has to outlive its answer.
        admin = self.admin()
        admin.create_topics([NewTopic(name, partitions, 1, config=dict(settings or {}))])[name].result(timeout=topic_s_max)
        return name
