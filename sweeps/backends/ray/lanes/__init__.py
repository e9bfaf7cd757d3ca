"""Lanes: Ray Train runs that stay up, the trials that they lease, and the broker between them and the driver.

The driver queues a trial at the broker; a worker of a lane leases it, trains it and reports; the broker keeps what it
says until the driver takes it. Whether Ray runs here or on a cluster is not known in this room. It asks the room
`cluster` for one thing: the folder of a local session, in which the workers of a group find each other.

    lanes        starts the lanes, keeps them up, ends them
    broker       the actor between driver and workers: queue, leases, reports, deaths
    leases       one trial on its way through a lane, as the broker knows it
    worker       what a lane's processes do: lease a trial, train it, report
    line         a worker's line to the broker
    groups       how the workers that share a trial find each other
    controllers  what runs in the controllers of lanes
"""
