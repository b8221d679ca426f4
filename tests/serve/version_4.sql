-- What `sqlite3 store.db .schema` printed of a store whose records were all text.
CREATE TABLE schema_version (
	version INTEGER NOT NULL
);
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
CREATE TABLE decisions (
	decision_id VARCHAR(64) NOT NULL, 
	customer_id VARCHAR(128) NOT NULL, 
	decided_at DATETIME NOT NULL, 
	channel VARCHAR(128) NOT NULL, 
	arm VARCHAR(64) NOT NULL, 
	offers INTEGER DEFAULT '0' NOT NULL, 
	idempotency_key VARCHAR(160), 
	request_hash VARCHAR(64) NOT NULL, 
	record TEXT NOT NULL, 
	PRIMARY KEY (decision_id), 
	UNIQUE (idempotency_key)
);
CREATE INDEX decisions_without_offers ON decisions (customer_id) WHERE offers = 0;
CREATE TABLE outcomes (
	outcome_id VARCHAR(128) NOT NULL, 
	decision_id VARCHAR(64), 
	customer_id VARCHAR(128) NOT NULL, 
	offer_id VARCHAR(128), 
	outcome_type VARCHAR(32) NOT NULL, 
	occurred_at DATETIME NOT NULL, 
	value FLOAT, 
	received_at DATETIME NOT NULL, 
	content_hash VARCHAR(64) NOT NULL, 
	PRIMARY KEY (outcome_id)
);
CREATE INDEX outcomes_by_customer ON outcomes (customer_id, occurred_at);
CREATE INDEX outcomes_by_decision ON outcomes (decision_id);
CREATE TABLE api_keys (
	key_id VARCHAR(32) NOT NULL, 
	name VARCHAR(128) NOT NULL, 
	scopes VARCHAR(128) NOT NULL, 
	secret_hash VARCHAR(64) NOT NULL, 
	created_at DATETIME NOT NULL, 
	revoked_at DATETIME, 
	last_used_at DATETIME, 
	requests_per_minute INTEGER, 
	PRIMARY KEY (key_id)
);
CREATE TABLE customer_events (
	event_id VARCHAR(128) NOT NULL, 
	customer_id VARCHAR(128) NOT NULL, 
	event_type VARCHAR(64) NOT NULL, 
	event_at DATETIME NOT NULL, 
	item VARCHAR(128), 
	category VARCHAR(128), 
	channel VARCHAR(128), 
	session_id VARCHAR(128), 
	value FLOAT, 
	received_at DATETIME NOT NULL, 
	content_hash VARCHAR(64) NOT NULL, 
	PRIMARY KEY (event_id)
);
CREATE INDEX customer_events_by_customer ON customer_events (customer_id, event_at);
CREATE TABLE audit (
	number INTEGER NOT NULL, 
	at DATETIME NOT NULL, 
	actor VARCHAR(128) NOT NULL, 
	action VARCHAR(64) NOT NULL, 
	subject VARCHAR(256) NOT NULL, 
	detail TEXT NOT NULL, 
	previous_hash VARCHAR(64) NOT NULL, 
	hash VARCHAR(64) NOT NULL, 
	PRIMARY KEY (number), 
	UNIQUE (hash)
);
CREATE TABLE erasures (
	customer_hash VARCHAR(64) NOT NULL, 
	erased_at DATETIME NOT NULL, 
	PRIMARY KEY (customer_hash)
);
CREATE TABLE contacts (
	decision_id VARCHAR(64) NOT NULL, 
	rank INTEGER NOT NULL, 
	customer_id VARCHAR(128) NOT NULL, 
	offer_id VARCHAR(128) NOT NULL, 
	channel VARCHAR(128) NOT NULL, 
	contacted_at DATETIME NOT NULL, 
	batch VARCHAR(64), 
	propensity FLOAT, 
	window_ends_at DATETIME, 
	loss_if_ignored FLOAT, 
	loss_if_answered FLOAT, 
	PRIMARY KEY (decision_id, rank), 
	FOREIGN KEY(decision_id) REFERENCES decisions (decision_id)
);
CREATE INDEX contacts_by_offer ON contacts (offer_id, contacted_at, window_ends_at, batch, propensity, loss_if_ignored);
CREATE INDEX contacts_by_customer ON contacts (customer_id, contacted_at);
INSERT INTO schema_version VALUES (4);
INSERT INTO alembic_version VALUES ('0004');
INSERT INTO decisions VALUES ('d1', '7', '2017-12-10 09:30:00.000000', 'email', 'policy', 2, 'k1', 'h', '{"answer":{"n":1}}');
INSERT INTO contacts VALUES ('d1', 1, '7', 'a', 'email', '2017-12-10 09:30:00.000000', NULL, 0.25, '2017-12-24 09:30:00.000000', 1.5, -2.5);
INSERT INTO contacts VALUES ('d1', 2, '7', 'b', 'email', '2017-12-10 09:30:00.000000', NULL, NULL, NULL, NULL, NULL);
INSERT INTO outcomes VALUES ('o1', 'd1', '7', 'a', 'click', '2017-12-10 10:00:00.000000', 2.5, '2017-12-10 10:00:01.000000', '2ae7');
INSERT INTO api_keys VALUES ('0123456789ab', 'web', 'decide', 'abc', '2017-12-01 00:00:00.000000', NULL, NULL, NULL);
INSERT INTO decisions VALUES ('d2', '7', '2017-12-11 09:30:00.000000', 'email', 'holdout', 0, NULL, 'h', '{"answer":{"n":2}}');
INSERT INTO decisions VALUES ('d3', '8', '2017-12-11 09:30:00.000000', 'email', 'holdout', 0, NULL, 'h', '{"answer":{"n":3}}');
