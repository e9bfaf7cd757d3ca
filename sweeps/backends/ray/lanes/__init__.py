"""Lanes: Ray Train runs that stay up, the trials that they lease, and the broker between them and the driver.

The driver queues a trial at the broker. A worker of a lane leases it, trains it and reports. The broker keeps the
reports until the driver takes them. This room does not know whether Ray runs here or on a cluster. It asks the room
`cluster` for one thing: the folder of a local session, in which the workers of a group find each other.

    lanes        starts the lanes, starts them again if they fail, and ends them
    broker       the actor between driver and workers: queue, leases, reports, deaths
    leases       one trial on its way through a lane, as the broker knows it
    worker       runs in a lane's processes: leases a trial, trains it, reports
    line         a worker's calls to the broker
    groups       connects the workers that share a trial
    controllers  what runs in the controllers of lanes
"""
